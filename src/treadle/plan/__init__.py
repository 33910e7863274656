"""The contract: what a compiled model is. A leaf package; everything else of treadle agrees with it.

`ir` has the types, `ops` and `params` what each opcode means, `verify` what a well-formed plan is, `codec` its file.
"""
