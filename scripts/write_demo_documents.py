"""Write the Python language reference, which every Python carries, as text files."""

import sys
from pathlib import Path
from pydoc_data.topics import topics


def main() -> None:
    """Write one file a topic into the folder given on the command line."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in sorted(topics.items()):
        path = folder / f"{name.replace('/', '_')}.rst"
        data = text.encode("utf-8")
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)
    print(f"{len(topics)} files in {folder}")


if __name__ == "__main__":
    main()
