"""The one place that asks transformers for a model: from a description and tensors, nothing else.

transformers is handed config.json's values and the tensors themselves, so that it looks for no file
and no repository: nothing is downloaded, unpickled, or run from a folder.
"""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from models.formats.files import CheckpointError

_CAN_NAME_CODE = ("auto_map", "kernel_config", "attn_implementation", "experts_implementation")


def build_network(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return the class that `config.json` names, holding the tensors, in fp32, for evaluation.

    Raises:
        CheckpointError: transformers is not installed; no causal language model; tensors that are
            missing, surplus, or of another shape.

    """
    library = _transformers(description.get("model_type"))
    config_class, model_class = _find_classes(library, description)
    name = model_class.__name__
    with _quiet(library.logging):
        try:
            network, info = model_class.from_pretrained(
                None,
                config=config_class.from_dict(_without_code(description)),
                state_dict=dict(tensors),
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # they are told from `info`, all at once
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=False,
            )
        except Exception as error:  # a class may raise anything over a config.json that is wrong
            raise CheckpointError(
                f"Expected a config.json that {name} can be made of, got: {_one_line(error)}. "
                "Copy the folder again."
            ) from error
    _check_complete(name, info)
    network.config.pad_token_id = None  # else the class warns that padding needs a mask; see loss
    model: nn.Module = network.eval()
    return model


def check_class(description: Mapping[str, Any]) -> None:
    """Refuse what transformers knows no causal language model for.

    Raises:
        CheckpointError: there is none, or transformers is not installed.

    """
    _find_classes(_transformers(description.get("model_type")), description)


def _transformers(model_type: object) -> Any:
    """Import it late: it is heavy, and only models of other classes need it."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise CheckpointError(
            f"Expected transformers for a model of type {model_type!r}, got none installed. Run "
            "pip install 'arion-federated[foreign]'."
        ) from error


def _find_classes(library: Any, description: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the configuration's class and the causal language model's."""
    named, model_type = description.get("architectures") or [], description.get("model_type")
    configs, models = library.CONFIG_MAPPING, library.MODEL_FOR_CAUSAL_LM_MAPPING
    # Both mappings import lazily; they have no usable `get`.
    config_class = configs[model_type] if model_type in configs else None  # noqa: SIM401
    model_class = models[config_class] if config_class in models else None  # noqa: SIM401
    if model_class is None or named != [model_class.__name__]:
        raise CheckpointError(
            f"Expected a causal language model that transformers {library.__version__} knows, "
            f"got {', '.join(map(str, named)) or 'no architecture'} of type {model_type!r}. "
            "Encoders, models of images or sound, and classes that come as code do not train here."
        )
    return config_class, model_class


def _without_code(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out, at every depth, what could name code or kernels from elsewhere."""
    return {
        key: _without_code(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key.removeprefix("_") not in _CAN_NAME_CODE
    }


def _check_complete(name: str, info: Mapping[str, Any]) -> None:
    missing, surplus = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    reshaped = sorted(str(key) for key, *_ in info["mismatched_keys"])
    if missing or surplus or reshaped:
        raise CheckpointError(
            f"Expected exactly the tensors of a {name}, got missing {missing[:3]}, surplus "
            f"{surplus[:3]}, of another shape {reshaped[:3]}. The weights belong to another "
            "configuration, or the folder is incomplete."
        )


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Keep transformers' bars and reports off standard error; our own errors say what matters."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
