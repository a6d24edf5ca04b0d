"""What numbers are worth: intervals, calibration, rankings, and differences between models that saw the same images."""
