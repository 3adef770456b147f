"""What a model makes of images: its tower, one recorder, norms, outliers, scores, maps, features and intervals."""
