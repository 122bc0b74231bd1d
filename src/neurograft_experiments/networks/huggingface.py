"""Image classifiers of Hugging Face transformers, from a configuration, without weights."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from neurograft.errors import InputError, MissingExtra, OptionError, closest
from neurograft_experiments.networks.shapes import Shape


def from_configuration(configuration: Mapping[str, Any] | str | Path, shape: Shape, classes: int) -> nn.Module:
    """An untrained image classifier of transformers; its output is a dataclass whose `logits` all of neurograft reads.

    `num_labels`, `num_channels` and `image_size` follow the data, unless the mapping sets them itself.

    Args:
        configuration: `{"model_type": "vit", "hidden_size": 64, …}`, or a folder with a config.json, of which only
            the architecture is taken, no weights.
        shape: channels, height and width of an image.
        classes: outputs.

    Raises:
        OptionError: if the model type is no image classifier, or a key is none of its configuration.
        InputError: if there is no such folder, or no network can be built of the configuration.
        MissingExtra: if transformers is not installed.
    """
    try:
        import transformers
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as KINDS
    except ImportError as error:
        raise MissingExtra("Hugging Face configurations need transformers: pip install 'neurograft[hf]'") from error
    channels, height, width = shape
    size = height if height == width else [height, width]
    data = {"num_labels": classes, "num_channels": channels, "image_size": size}
    if isinstance(configuration, Mapping):
        given = dict(configuration)
        kind, where = given.pop("model_type", None), "huggingface"
        _check_kind(kind, KINDS, where)
        _check_keys(given, transformers.AutoConfig.for_model(kind))
        config = _made(where, lambda: transformers.AutoConfig.for_model(kind, **data | given))
    else:
        where = f"{configuration}/config.json"
        if not Path(where).is_file():
            raise InputError(f"{where} does not exist; huggingface takes such a folder, or a mapping with model_type")
        options = {"trust_remote_code": False, "local_files_only": True} | data
        config = _made(where, lambda: transformers.AutoConfig.from_pretrained(str(configuration), **options))
        _check_kind(config.model_type, KINDS, where)
    classifier: Any = transformers.AutoModelForImageClassification
    return cast(nn.Module, _made(where, lambda: classifier.from_config(config)))


def _check_kind(kind: object, known: Collection[str], where: str) -> None:
    if kind not in known:
        raise OptionError(f"{where}: model_type {kind!r} is no image classifier; {closest(str(kind), known)}")


def _check_keys(given: Mapping[str, Any], config: Any) -> None:
    """Refuse keys that transformers would take and ignore."""
    known = {*config.to_dict(), *config.attribute_map}
    for key in given:
        if key not in known:
            raise OptionError(f"model_type {config.model_type!r} has no key {key!r}; {closest(key, known)}")


def _made(where: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception as error:
        raise InputError(f"{where} cannot be built: {type(error).__name__}: {error}") from error
