"""What is known without looking at a model: supported families, checkpoints, and what others published of them."""
