"""`luthier export`: a folder that plain transformers or peft loads, checked in a fresh process.

write    the verb: which form, which files                write.py
own      does the architecture's own class serve?         own.py
comparing  a judge that reads two outputs in a row        comparing.py
lines    the code of the card, which is what is checked   lines.py
card     README.md                                        card.py
fresh    ragged rows, and the process that runs the card  fresh.py
"""

from luthier.export.write import export

__all__ = ["export"]
