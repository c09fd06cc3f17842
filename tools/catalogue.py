"""Write the shipped tables of backbones for the installed versions: `python -m tools.catalogue` (two minutes)."""

from __future__ import annotations

from i3dconvert import catalogue
from i3dconvert.backbones import census
from i3dconvert.names import SOURCES


def main() -> None:
    """Replace each library's table by one for the installed version."""
    for source in SOURCES:
        table = census.taken(source)
        table = census.counted(source, table, [name for name, entry in table.items() if entry.parameters is None])
        if unknown := [name for name, entry in table.items() if entry.parameters is None]:
            raise SystemExit(f"can't count the parameters of {', '.join(unknown)}")
        for earlier in catalogue.SHIPPED.glob(f"{source}-*.json"):
            earlier.unlink()
        path = catalogue.path_of(source)
        catalogue.write(path, table)
        print(f"{path.name}: {len(table)} backbones")


if __name__ == "__main__":
    main()
