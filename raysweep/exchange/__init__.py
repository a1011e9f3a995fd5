"""What goes out and comes in: exported and other people's models, published results."""
