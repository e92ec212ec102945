"""Making data sets in nnU-Net's raw format."""
