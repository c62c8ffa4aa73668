"""Triton model repositories: layout, config.pbtxt, flavor conversion, stores."""
