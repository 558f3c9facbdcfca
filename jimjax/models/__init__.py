"""Network definitions and the seam through which everything else uses them."""
