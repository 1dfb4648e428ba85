"beartype as the suite uses it: an int passes for a float, as it does for type checkers (PEP 484)."
from beartype import BeartypeConf, beartype

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))
