"""What each compression of each layer costs on its own, measured on calibration images."""
