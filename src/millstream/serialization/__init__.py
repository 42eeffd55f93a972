"""Values to bytes and back: codecs, the layout of keys, and the partitions that they belong to."""

from millstream.serialization._plain import dump_str, type_name
from millstream.serialization._typed import uses_pydantic
from millstream.serialization.base import Codec, CodecFactory
from millstream.serialization.immutable import is_immutable_type
from millstream.serialization.keys import KeyLayout, key_layout
from millstream.serialization.partitioners import (
    PARTITIONERS,
    Partitioner,
    any_partition,
    murmur2,
    partitioner,
)
from millstream.serialization.registry import (
    codec_for,
    codec_names,
    key_codec_for,
    register_codec,
)
from millstream.serialization.schema import value_schema
from millstream.serialization.strict import strict_codec, type_of
from millstream.serialization.upgrading import UpgradingCodec, upgrading

__all__ = [
    "PARTITIONERS",
    "Codec",
    "CodecFactory",
    "KeyLayout",
    "Partitioner",
    "UpgradingCodec",
    "any_partition",
    "codec_for",
    "codec_names",
    "dump_str",
    "is_immutable_type",
    "key_codec_for",
    "key_layout",
    "murmur2",
    "partitioner",
    "register_codec",
    "strict_codec",
    "type_name",
    "type_of",
    "upgrading",
    "uses_pydantic",
    "value_schema",
]
