"""."""
from typing import Any
LoadedChain = Any
def load_chain(*a: Any): ...
