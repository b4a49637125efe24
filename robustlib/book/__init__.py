"""The book: all that the project publishes, as pages that are read without a network."""
