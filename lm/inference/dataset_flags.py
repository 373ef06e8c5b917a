"""The flags of launch/predict.py for files of requests that become a folder of Parquet, here or on Ray.

This module is imported before JAX.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from absl import flags

from lm import cli
from lm.data import workers

if TYPE_CHECKING:  # with jax
    from lm.inference.predict import Options


flags.disclaim_key_flags()  # --help of a script lists these flags with its own


@dataclass(frozen=True)
class DatasetFlags:
    """The values of the flags, read when they are asked for."""

    _runner: flags.FlagHolder
    _workers: flags.FlagHolder
    _id_field: flags.FlagHolder
    _text_field: flags.FlagHolder

    def runner(self, path: str) -> str | None:
        """Returns where the requests of these files are answered; None if the answers are to be lines of JSON.

        Raises:
            InputError: a flag is given that does nothing then, or the runner is not there.
        """
        runner = self._runner.value or ("local" if path.endswith(".parquet") else None)
        of_attention = ("attention_of", "attention_layer", "attention_head")
        if runner is not None:
            cli.refuse_given(("attention", *of_attention), "on Parquet")
        else:
            cli.refuse_given(("workers", "id_field", "text_field"), "without --runner, but for *.parquet")
            if not flags.FLAGS["attention"].value:
                cli.refuse_given(of_attention, "without --attention")
        if runner == "local":
            cli.refuse_given(("workers",), "without Ray")
        if runner is not None:
            from lm.data import ray_workers, records  # with TensorStore

            ray_workers.check(runner)
            records.import_arrow("an --output of Parquet")
            if runner != "local":
                ray_workers.import_ray()
        return runner

    def answer(
        self, runner: str, checkpoint: str, task: str, make_options: Callable[[], "Options"], path: str, out: str
    ) -> None:
        """Answers the requests of the files, and prints how many; see `lm.inference.dataset.answer`."""
        with workers.announced("loading JAX"):
            from lm.inference import dataset, parts

            options = make_options()
        columns = parts.Columns(self._id_field.value, self._text_field.value)
        job = dataset.Job(checkpoint, task, options, columns)
        print(f"{out}: {dataset.answer(job, path, out, runner, self._workers.value)}")


def define_dataset() -> DatasetFlags:
    return DatasetFlags(
        flags.DEFINE_string("runner", None, "Write Parquet, on this machine or Ray: local, ray or ray://HOST:PORT."),
        flags.DEFINE_integer("workers", None, "Models on Ray; default: one for each GPU, or node.", lower_bound=1),
        flags.DEFINE_string("id_field", "id", "With --runner: the column or JSON field that names a request."),
        flags.DEFINE_string("text_field", "text", "With --runner: the column or JSON field that holds the text."),
    )
