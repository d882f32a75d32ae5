# Makes this folder the package of that name, also where another distribution brings one.
