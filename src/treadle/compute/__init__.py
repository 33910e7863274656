"""What the Python backends call: the same op names and signatures in every folder, arrays and scalars only."""
