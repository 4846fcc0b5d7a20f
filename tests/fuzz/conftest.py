import sys
from pathlib import Path

# `hostile` is a package of the fuzz tests and of their runner.
sys.path.insert(0, str(Path(__file__).parent))
