"""Point clouds: from HDF5, text, point files and meshes, prepared sets, and corrupted ones."""
