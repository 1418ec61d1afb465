"""
The message ids of the records that tests and benchmarks look for, each under a name.

The program has them as literals beside its log calls, the message catalog explains them.
"""

LOADED = "75bd5b2d1e3d4f139ebabd17d05f836b"
NOT_UTF8 = "ae6de87d944d44769eb825e65fa730e2"
KEPT = "d9a7bc3707d94fb8a97a3861b7924ca8"
LEFT_OUT = "66370c4cceee46698cd1005d12eea6b4"
PASSED_OVER = "b917b3f4b8ab4046a0920b1e1fadc045"
LOADED_ALL = "fbe5f3b677634e91bfe71f4e1f04f67e"
NOT_ALL_UTF8 = "01d5559e05be46f8b025f61353b4f9fc"

SERVING = "0217db627ce8470bb0671ca6e3266dc1"
CANNOT_LISTEN = "08e1b6dd16394f819c02a8adcd4326af"
REFUSED_OPTION = "c1f0c6f6f9a34d8f9d5ab9f8b3a6e2d7"
IDLE = "f3106b932cbd44a3b83eaabd30c7ba05"

SENT = "51c4b039c6b549da8188e2ad236b9868"
LEFT = "aac587f9fd8d4d049348340f51b0da4a"
GAVE_UP = "470c42a041664ba0ba7ef62f224426bf"
GAVE_UP_NEAR_THE_END = "8661237894b24e009d5b2e4ed36bd13c"
TURNED_AWAY = "4c40f64984b04c188433d02c24c4950e"
SUMMARY = "4f161caf0e264a26815e0fb0d6cba257"
FULL = "fbb58c123b214fef889bb057cdfb5239"

FETCHED = "8e3d4a0808a54168ab40bdf251136819"
FAILED = "79766008b2c14493acb77a70aa9a6f3c"
BACK = "b5a240cac91d41cba1214121e211a7eb"
NO_COPY = "d9116cf49f434364ae55c197ff41359b"

TOOK_OVER = "2439ffc2fe1e4e2a9320762c90721e57"
TOOK_OVER_PART = "135be9b276f1418086abe61315355e14"
NOT_HANDED_OVER = "211c64da4e404641899567ad9db46522"

DROPPED = "18dca92ef40d43e18a4550720f27a296"

UNIT_STARTING = "7d4958e842da4a758f6c1cdc7b36dcc5"
"""Systemd's own: it begins to start a unit (C{journalctl --dump-catalog})."""
