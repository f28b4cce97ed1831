from __future__ import annotations

import argparse

from . import (
    bake,
    batch,
    families,
    generated,
    gpu,
    image,
    memory,
    nerf,
    pull,
    quality,
    rasterize,
    refine,
    scores,
    taesd,
    views,
)

BENCHMARKS = {
    "rasterize": rasterize.main,
    "gpu": gpu.main,
    "pull": pull.main,
    "quality": quality.main,
    "image": image.main,
    "refine": refine.main,
    "memory": memory.main,
    "families": families.main,
    "taesd": taesd.main,
    "bake": bake.main,
    "batch": batch.main,
    "views": views.main,
    "scores": scores.main,
    "nerf": nerf.main,
    "generated": generated.main,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True)
    for name in BENCHMARKS:
        names.add_parser(name).add_argument(
            "--json", action="store_true", help="print one line of JSON in place of the table"
        )
    pull.add_arguments(names.choices["pull"])
    memory.add_arguments(names.choices["memory"])
    families.add_arguments(names.choices["families"])
    quality.add_arguments(names.choices["quality"])
    image.add_arguments(names.choices["image"])
    refine.add_arguments(names.choices["refine"])
    bake.add_arguments(names.choices["bake"])
    batch.add_arguments(names.choices["batch"])
    taesd.add_arguments(names.choices["taesd"])
    nerf.add_arguments(names.choices["nerf"])
    views.add_arguments(names.choices["views"])
    scores.add_arguments(names.choices["scores"])
    generated.add_arguments(names.choices["generated"])
    options = vars(parser.parse_args())
    name, as_json = options.pop("name"), options.pop("json")
    BENCHMARKS[name](as_json, **options)


if __name__ == "__main__":
    main()
