exports.text = () => "late, but here";
