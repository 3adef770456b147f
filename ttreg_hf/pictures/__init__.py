"""What people look at, drawn with matplotlib: colours, norms over blocks, an image before and after."""
