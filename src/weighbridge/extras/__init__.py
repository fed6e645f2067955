"""What is not the product: quality, serving and its speed, each with packages of its own."""
