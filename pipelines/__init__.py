"""Verbs: one short file per entry point. Importing this package puts this checkout's ``src/`` on the path, once."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

try:
    import pydantic  # noqa: F401
    import yaml  # noqa: F401
except ImportError as error:
    print(
        f"error: {error.name} is not installed for {sys.executable}; activate the project's environment "
        "(or use mlflow run --env-manager uv)",
        file=sys.stderr,
    )
    sys.exit(2)
