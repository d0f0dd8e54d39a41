"""How a traced function of tensors becomes machine code.

`trace` records the torch operations that a function comes down to, as a graph. `simplify` and `fold` take away what
does not change the result. `eager` runs such a graph by torch's own operations, and `inductor`, with its
`inductor_cache`, compiles it by torch's compiler. For steps of many small fits, chains or points there is a faster way:
`translate` turns the graph of one lane into loops and blocks of C++ (`values` says what these are, `operations` how
each operation is written, `builder` collects them), `emit` puts them into one C++ function (`text` writes single
elements, `places` finds patterns in where they lie), `vectors.h` has the arithmetic on vectors of lanes (`vectors` its
constants), and `toolchain` compiles it and keeps the result in the compile cache. `kernel` is this way from a step to a
callable as a whole, and `many_points` uses it to evaluate one function at many points, with torch's operations as
fallback.
"""
