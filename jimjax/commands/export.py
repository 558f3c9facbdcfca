"""``jimjax export``: the network of a run as one file to hand on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Export:
    """Write the network of a run to a safetensors file.

    The file holds the network alone, without references, particles or optimiser, and what it is:
    its configuration, contrast and voxel size. jimjax align and jimjax train take it as --weights.

    Attributes:
        run_folder: folder that jimjax train made.
        out: file to write, such as weights.safetensors.
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    out: Path

    def run(self) -> None:
        """Loads the run and writes its network."""
        from jimjax.commands import files

        files.check_output_file(self.out, [])

        from jimjax.models.functional import num_parameters
        from jimjax.models.weights import save_weights
        from jimjax.train.run import load_run, weights_of

        weights = weights_of(load_run(self.run_folder))
        save_weights(self.out, weights)
        kind, num = weights.description.kind, num_parameters(weights.network)
        print(f"{kind} with {num} parameters: {self.out}")
