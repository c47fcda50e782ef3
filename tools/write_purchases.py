"""Writes examples/purchases.csv, the purchases of a made-up shop: `python tools/write_purchases.py [PATH [USERS]]`.

Everyone buys each thing of a few again at an interval of its own, and takes along what goes with it half of the time.
"""

import csv
import datetime
import sys
from pathlib import Path

import numpy as np

PATH = Path(__file__).resolve().parents[1] / "examples" / "purchases.csv"
GOES_WITH = {"tea": "milk", "bread": "butter", "pasta": "sauce", "rice": "beans", "soap": "towel", "pen": "paper"}
DAYS = 120


def write(path: Path, users: int) -> None:
    """Writes the table; the same bytes for the same number of users."""
    random, rows = np.random.default_rng(0), []
    for user in range(users):
        own = random.choice(list(GOES_WITH), size=3, replace=False)
        due = {str(thing): (int(random.integers(0, 14)), int(random.integers(5, 15))) for thing in own}
        for day in range(DAYS):
            bought = [thing for thing, (first, every) in due.items() if day >= first and (day - first) % every == 0]
            bought += [GOES_WITH[thing] for thing in bought if random.random() < 0.5]
            when = datetime.datetime(2024, 1, 1, 9) + datetime.timedelta(days=day, minutes=int(random.integers(600)))
            rows += [(when, f"user {user}", f"{user}-{day}", item) for item in bought]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("time", "user", "basket", "item"))
        writer.writerows((f"{when:%Y-%m-%d %H:%M}", *rest) for when, *rest in sorted(rows))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    target = Path(arguments[0]) if arguments else PATH
    write(target, int(arguments[1]) if len(arguments) > 1 else 40)
    print(f"written: {target}")
