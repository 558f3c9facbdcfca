"""Tomograms: template matching, picks, and subtomograms cut out."""
