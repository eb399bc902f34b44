"""Class counts under noise: what is asked, and who counts. It knows no bounds and no radii."""
