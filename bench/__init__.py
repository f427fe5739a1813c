"""The quality benchmark: measures, pictures, settings, the runner and its bars. No part of the extension; run `python -m bench.quality`."""
