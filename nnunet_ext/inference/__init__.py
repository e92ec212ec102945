"""The engine: windows, prediction of folders, validation of folds and export, for any network nnU-Net builds."""
