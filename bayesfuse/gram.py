"""The former home of `bayesfuse.grams`: a module of this name would hide the function `bayesfuse.gram`."""

from bayesfuse.grams import Bands, FrameTransform, Gram, gram, gram_of_blocks, grams_of_blocks, sdr, squared_error

__all__ = ["Bands", "FrameTransform", "Gram", "gram", "gram_of_blocks", "grams_of_blocks", "sdr", "squared_error"]
