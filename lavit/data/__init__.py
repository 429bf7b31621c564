"""Data: assets from package registries, sources of captioned images and of questions, splits, and webdataset shards."""
