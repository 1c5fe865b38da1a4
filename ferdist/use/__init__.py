"""A trained model in use: on pictures, and in other formats."""
