// exp, tanh, erf and the activations over the native vector. Polynomials are minimax fits of this project; errors
// are a few units in the last place (native/tests/test_elementwise.cpp holds the bounds).
#pragma once

#include "compute/vec/vec.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

// e^x. Below -87.33 it is 0 (so e^-inf is exactly 0), above 88.37 it saturates at 2.4e38.
// Adding 1.5 * 2^23 rounds x / ln 2 to an integer n in the low bits; 2^n goes straight into the exponent.
TREADLE_INLINE F vexp(F x) {
    const F lowest = set1(-87.33f), magic = set1(12582912.0f);
    F bounded = min(max(x, lowest), set1(88.37f));
    F shifted = fma(bounded, set1(1.44269504f), magic);
    F whole = sub(shifted, magic);
    F r = fma(whole, set1(-0.693359375f), bounded);  // ln 2 in two parts, the first with few bits
    r = fma(whole, set1(2.12194440e-4f), r);
    F p = set1(0.00139505998f);
    p = fma(p, r, set1(0.00836895406f));
    p = fma(p, r, set1(0.041666206f));
    p = fma(p, r, set1(0.166665182f));
    p = fma(p, r, set1(0.5f));
    F y = add(fma(mul(r, r), p, r), set1(1.0f));
    return select(less(x, lowest), zero(), scale_by_low_bits(y, shifted));
}

TREADLE_INLINE F sigmoid(F x) { return div(set1(1.0f), add(set1(1.0f), vexp(sub(zero(), x)))); }

// log(1 + e^x): e^-|x| = u in [0, 1] and log(1 + u) = u * P(u).
TREADLE_INLINE F softplus(F x) {
    const F u = vexp(sub(zero(), abs(x)));
    F p = set1(-0.00324402121f);
    p = fma(p, u, set1(0.0198514443f));
    p = fma(p, u, set1(-0.0569594987f));
    p = fma(p, u, set1(0.106036514f));
    p = fma(p, u, set1(-0.153055906f));
    p = fma(p, u, set1(0.196759388f));
    p = fma(p, u, set1(-0.249541342f));
    p = fma(p, u, set1(0.333299637f));
    p = fma(p, u, set1(-0.499999017f));
    p = fma(p, u, set1(1.0f));
    return fma(u, p, max(x, zero()));
}

TREADLE_INLINE F vtanh(F x) {
    F a = abs(x), q = mul(a, a);
    F p = set1(0.00209771818f);
    p = fma(p, q, set1(-0.00812899694f));
    p = fma(p, q, set1(0.0216816422f));
    p = fma(p, q, set1(-0.0539433993f));
    p = fma(p, q, set1(0.133331805f));
    p = fma(p, q, set1(-0.333333313f));
    F small = fma(mul(q, a), p, a);
    F large = sub(set1(1.0f), div(set1(2.0f), add(vexp(add(a, a)), set1(1.0f))));
    return with_sign(select(less(a, set1(0.625f)), small, large), x);
}

// |x| < 1: x * P(x^2). Else 1 - e^Q(|x|), with Q fitted to log(erfc) up to 4, where erf rounds to 1.
TREADLE_INLINE F verf(F x) {
    F a = min(abs(x), set1(4.0f)), q = mul(a, a);
    F p = set1(7.8891193e-05f);
    p = fma(p, q, set1(-0.000802084105f));
    p = fma(p, q, set1(0.00518953521f));
    p = fma(p, q, set1(-0.0268544443f));
    p = fma(p, q, set1(0.112836003f));
    p = fma(p, q, set1(-0.37612626f));
    p = fma(p, q, set1(1.12837911f));
    F small = mul(a, p);
    F l = set1(-2.16522549e-05f);
    l = fma(l, a, set1(0.000440942094f));
    l = fma(l, a, set1(-0.00420267694f));
    l = fma(l, a, set1(0.0252033547f));
    l = fma(l, a, set1(-0.108411089f));
    l = fma(l, a, set1(-0.633226633f));
    l = fma(l, a, set1(-1.12957513f));
    l = fma(l, a, set1(0.000187360376f));
    F large = sub(set1(1.0f), vexp(l));
    return with_sign(select(less(a, set1(1.0f)), small, large), x);
}

TREADLE_INLINE F gelu(F x) {
    F half = mul(x, set1(0.5f));
    return fma(half, verf(mul(x, set1(0.707106781f))), half);
}

TREADLE_INLINE F gelu_tanh(F x) {
    F half = mul(x, set1(0.5f));
    F inner = mul(set1(0.797884561f), fma(mul(mul(x, x), x), set1(0.044715f), x));
    return fma(half, vtanh(inner), half);
}

}  // namespace treadle::compute::TREADLE_ISA_NS
