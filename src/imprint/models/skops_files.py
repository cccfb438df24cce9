"""Fitted scikit-learn and skrub objects on disk: skops with an explicit allow-list, never pickle.

A skops file names the types that it would rebuild. It is opened only if each of them is on the list below; anything else,
for instance `os.system` put there by a stranger, is refused before it is imported or called. So is a name that is only
passing through a trusted module (`sklearn.svm._base.warnings`): a type must be defined where its name says.
"""

from __future__ import annotations

import importlib
import re
import zipfile
from pathlib import Path
from typing import Any

from imprint.errors import RunError

# What skops does not trust by itself and what a fitted TableVectorizer or scikit-learn estimator is made of. Matched against
# the whole dotted name. Packages with functions that run code or touch files and network (numpy.testing, numpy.f2py,
# sklearn.datasets, sklearn.utils, scipy.io, ...) are not on it.
TRUSTED = re.compile(
    r"(?!.*\.tests\.)("
    r"skrub\._(apply_to_each_col|apply_to_cols|apply_to_sub_frame|check_input|clean_categories|clean_null_strings|datetime_encoder"
    r"|drop_uninformative|duration_to_float|on_each_column|on_subframe|string_encoder|table_vectorizer|to_categorical|to_datetime"
    r"|to_float|to_float32|to_str|single_column_transformer|wrap_transformer)\.\w+"
    r"|skrub\._dataframe\._common\.(is|has)_\w+"
    r"|skrub\.selectors\.(_base|_selectors)\.\w+"
    r"|polars\.datatypes\.classes\.\w+"
    r"|pandas\.(core\.dtypes\.dtypes|core\.arrays\.string_)\.\w+Dtype"
    r"|numpy\.(dtype|dtypes\.\w+|random\._generator\.Generator|random\._pcg64\.PCG64|random\.mtrand\.RandomState)"
    r"|numpy\.(bool|bool_|str_|u?int\d+|float\d+|longlong|ulonglong)"
    r"|scipy\.sparse\._(csr|csc|coo)\.\w+"
    r"|sklearn\.(_loss\.\w+|calibration|discriminant_analysis|dummy|isotonic|kernel_approximation|multiclass|multioutput"
    r"|naive_bayes|pipeline|(cluster|compose|decomposition|ensemble|gaussian_process|impute|linear_model|metrics|mixture|neighbors"
    r"|neural_network|preprocessing|svm|tree)\.[\w.]+)\.\w+"
    r"|sklearn\.(gaussian_process\.kernels|pipeline)\.\w+"
    r"|collections\.(OrderedDict|defaultdict))"
)


def trusted(name: str) -> bool:
    """Is this a type on the allow-list (or one of skrub's own column predicates)?

    >>> trusted("sklearn.tree._tree.Tree"), trusted("sklearn.tree._classes.clone"), trusted("os.system")
    (True, False, False)
    """
    if not TRUSTED.fullmatch(name):
        return False
    module, _, attribute = name.rpartition(".")
    try:
        value = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        return False
    if module.startswith("skrub."):
        return getattr(value, "__module__", None) == module
    return isinstance(value, type) and (value.__module__ == module or not module.startswith("sklearn."))


def dump(fitted: Any, path: Path) -> None:
    """Write a fitted object, compressed (skops writes a vocabulary as verbose JSON)."""
    import skops.io

    skops.io.dump(fitted, path, compression=zipfile.ZIP_DEFLATED, compresslevel=1)


def load(path: Path) -> Any:
    """Read what `dump` wrote.

    Raises:
        RunError: The file is missing or damaged, or holds a type that is not on the allow-list.
    """
    import skops.io
    from skops.io.exceptions import UntrustedTypesFoundException

    try:
        named = skops.io.get_untrusted_types(file=path)
        refused = sorted(name for name in named if not trusted(name))
        if refused:
            raise RunError(
                f"'{path}' asks for types that Imprint does not open: {', '.join(refused)}.",
                "Open it only if you know who wrote it, and with that program; train the run again to be safe.",
            )
        return skops.io.load(path, trusted=named)
    except UntrustedTypesFoundException as error:
        raise RunError(
            f"'{path}' asks for types that Imprint does not open: {error}.", "Train the run again."
        ) from error
    except FileNotFoundError:
        raise RunError(f"'{path}' is missing.", "Restore the folder from a copy, or train again.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, zipfile.BadZipFile) as error:
        raise RunError(
            f"'{path}' cannot be read: {error}.",
            "It is damaged, or of another scikit-learn or skrub; install the versions in manifest.json, or train again.",
        ) from error
