"""The same model under BentoML, which answers requests that wait together, for benchmarks/serving.py.

python -m benchmarks.peer_bentoml BUNDLE PORT
"""

import os
import sys
from pathlib import Path

import bentoml

from remint.serving.model import load


@bentoml.service(traffic={"timeout": 60})
class Sampler:
    def __init__(self) -> None:
        self.model = load(Path(os.environ["BUNDLE"]))

    @bentoml.api(batchable=True, max_batch_size=64)
    def sample(self, seeds: list[int]) -> list[list]:
        return self.model.draw([(seed, 0) for seed in seeds])[0].tolist()


if __name__ == "__main__":
    os.environ["BUNDLE"] = sys.argv[1]
    serve = ["serve", "benchmarks.peer_bentoml:Sampler", "--host", "127.0.0.1", "--port", sys.argv[2]]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", *serve])
