import sys
from pathlib import Path

# scripts of subprocesses need the toys too, so they are a plain module beside the tests
sys.path.insert(0, str(Path(__file__).parent))
