//! Query strings as Kubernetes reads them.

/// Name and value of every parameter, decoded, in order.
pub fn pairs(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name), decode(value))
        })
        .collect()
}

/// A boolean parameter: only `false` and `0` mean no; a name without a value means yes (apimachinery's conversion of
/// query parameters).
pub fn boolean(value: &str) -> bool {
    !(value == "0" || value.eq_ignore_ascii_case("false"))
}

/// Undoes percent encoding and `+`; what is malformed stays as it is.
pub fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |i: usize| bytes.get(i).and_then(|b| char::from(*b).to_digit(16));
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                // two hexadecimal digits fit a byte
                out.push((high * 16 + low) as u8);
                at += 2;
            }
            (b'+', ..) => out.push(b' '),
            (byte, ..) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_keep_order_repeats_and_special_characters() {
        let got = pairs("command=sh&command=-c&command=echo%20a+b%26c&stdin&x=100%");
        let got: Vec<(&str, &str)> = got.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let want =
            [("command", "sh"), ("command", "-c"), ("command", "echo a b&c"), ("stdin", ""), ("x", "100%")];
        assert_eq!(got, want);
    }

    #[test]
    fn only_false_and_zero_mean_no() {
        let got: Vec<bool> = ["", "1", "true", "yes", "0", "false", "False"].map(boolean).to_vec();
        assert_eq!(got, [true, true, true, true, false, false, false]);
    }
}
