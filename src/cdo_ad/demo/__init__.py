"""The whole job on drawn products."""
