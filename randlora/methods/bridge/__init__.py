"""The methods of Hugging Face PEFT as methods of this package, called "peft:" and PEFT's name in small letters.

    installed  imports PEFT, and finds its types and their fields
    measure    counts and legal capacities, measured on small layers
    counts     counts and legal capacities that cannot be measured
    kinds      one table: what cannot be measured of every type; and the types that do not fit
    config     a type's configuration, checked by PEFT's own class
    build      PEFT's layers as adapters: its tuner runs on a tree of the target weights
    freedom    degrees of freedom in closed form
    entry      a type's entry in the registry

`peft` is imported when such a name is first looked up, and never by `import randlora`.
"""
