"""Run the loads without targets on whatever tree is on the path; writes before.json.

git archive 0e84ff1 src | tar -x -C FOLDER        # the last tree that knows no targets
PYTHONPATH=FOLDER/src python experiments/targets/before.py
"""

from __future__ import annotations

import json
from pathlib import Path

from aimed_loads import NUM_LEARNING, RATES, kept, made, served, slo_text

HERE = Path(__file__).parent


def main() -> None:
    """Run what is not in the file yet."""
    path = HERE / "before.json"
    rows = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for seed in range(5):
        for mix, rates in RATES.items():
            for rate in rates:
                key = f"kept|{mix}|{rate:g}|none|{seed}"
                if key in rows:
                    continue
                records = served(made(mix, rate, seed), slo_text({}, {}), seed)
                rows[key] = {"all": kept(records[NUM_LEARNING:]), "whole": kept(records)}
                path.write_text(json.dumps(rows) + "\n", "utf-8")


if __name__ == "__main__":
    main()
