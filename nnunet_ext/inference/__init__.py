"""From a trained network to label maps, where nnU-Net alone does not lead."""
