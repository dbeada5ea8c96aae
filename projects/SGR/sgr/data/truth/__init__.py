"""What a dataset says of one image: one reader for mappers, evaluators and the checker."""
