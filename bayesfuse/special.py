"""Modified Bessel functions of the second kind K_nu: logarithm and ratio of neighbouring orders.

`fixed_order` prepares, once and on the host, everything that depends on the order alone, and evaluates a million
entries for the price of a few exponentials. `log_kve` and `kv_ratio` accept the order as an array and are
differentiable in both arguments.

References
----------
N. M. Temme, "On the numerical evaluation of the modified Bessel function of the third kind", J. Comput. Phys. 19,
1975 (the power series for small arguments).
"""

from bayesfuse._bessel_fixed import FixedOrder, fixed_order

__all__ = ["FixedOrder", "fixed_order"]
