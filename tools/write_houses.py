"""Writes examples/houses.csv, a small table made by a formula: `python tools/write_houses.py [PATH [ROWS]]`.

Numbers of very different scales, categories with rare levels, a date, missing values; `price` to regress, `energy` to
classify.
"""

import csv
import datetime
import sys
from pathlib import Path

import numpy as np

PATH = Path(__file__).resolve().parents[1] / "examples" / "houses.csv"
DISTRICTS = ("old town", "harbour", "hills", "station", "park", "airport")
SHARES = (0.3, 0.25, 0.2, 0.14, 0.1, 0.01)
VALUE = (1.3, 1.1, 1.5, 0.9, 1.2, 0.6)  # of a square metre, by district


def write(path: Path, rows: int) -> None:
    """Writes the table; the same bytes for the same number of rows."""
    random = np.random.default_rng(0)
    area = np.exp(random.normal(4.5, 0.4, rows))
    rooms = np.clip(np.round(area / 25 + random.normal(0, 0.7, rows)), 1, 12)
    age = np.round(random.gamma(2.0, 20.0, rows))
    distance = np.exp(random.normal(7.5, 1.0, rows))  # metres to a stop
    garden = random.random(rows) < 0.4
    district = random.choice(len(DISTRICTS), rows, p=SHARES)
    day = random.integers(0, 1000, rows)
    worn = age * (district != 2) / 60 + 0.2 * random.normal(size=rows)
    energy = np.array(list("ABCD"))[np.digitize(worn + 0.3 * garden, (0.3, 0.7, 1.2))]
    noise = 1 + 0.1 * random.normal(size=rows)
    price = 2000 * area * np.array(VALUE)[district] * (1 + 0.15 * garden) * (1 + day / 2000) * noise
    price *= np.exp(-age / 150) * np.exp(-distance / 2e4)
    no_age, no_district = random.random(rows) < 0.06, random.random(rows) < 0.03
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("id", "area", "rooms", "age", "distance", "garden", "district", "sold", "energy", "price"))
        for row in range(rows):
            writer.writerow(
                (
                    row + 1,
                    f"{area[row]:.1f}",
                    int(rooms[row]),
                    "" if no_age[row] else int(age[row]),
                    int(distance[row]),
                    "yes" if garden[row] else "no",
                    "" if no_district[row] else DISTRICTS[district[row]],
                    datetime.date(2021, 1, 1) + datetime.timedelta(int(day[row])),
                    energy[row],
                    int(round(price[row], -2)),
                )
            )


if __name__ == "__main__":
    arguments = sys.argv[1:]
    target = Path(arguments[0]) if arguments else PATH
    write(target, int(arguments[1]) if len(arguments) > 1 else 200)
    print(f"written: {target}")
