"""The `nnunet_ext` command: one file per sub-command."""
