"""From bytes to a judged and recorded inspection: decoding, batching, models, drift."""
